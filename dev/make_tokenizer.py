"""Train the tiny model's tokenizer: byte-level BPE, so that any text can be written, on hand-object vocabulary.

python dev/make_tokenizer.py svimo_core/model/tokenizer.json
"""

import itertools
import sys

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

TOOLS = (
    "spoon spatula brush knife ladle whisk fork roller eraser glue gun hammer screwdriver peeler scraper kettle cup "
    "bottle teapot sponge cloth stick pen chisel tongs funnel pan mallet rolling pin comb scissors"
).split()
ACTIONS = (
    "stir brush cut scoop pour hit scrape smear dust empty put in put out screw skim off wipe measure peel "
    "roll shake press open close fill mix tap slice spread clean lift push pull rub knock spray"
).split()
TARGETS = (
    "bowl cup plate pan kettle box board toy pot bottle mug tray book basket jar vase can block bag dish glass "
    "table apple bread shoe phone keyboard camera lid"
).split()
VOCAB_SIZE = 640

tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
tokenizer.decoder = decoders.ByteLevel()
corpus = (f"use {t} to {a} {o}" for t, a, o in itertools.product(TOOLS, ACTIONS, TARGETS))
tokenizer.train_from_iterator(
    corpus,
    trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    ),
)
tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
tokenizer.save(sys.argv[1])
