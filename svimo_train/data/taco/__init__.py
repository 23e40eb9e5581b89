"""TACO (Liu et al., CVPR 2024), two hands with a tool and a target, as training clips.

    python -m svimo_train.data.taco prepare SOURCE OUT --mano FOLDER
    python -m svimo_train.data.taco look OUT

SOURCE is TACO as its authors publish it (https://taco2024.github.io, CC BY 4.0). Read prepare first, which puts the
others together: layout (what lies where), split, scene (one view of one sequence, checked), clips (its parts, cropped).
"""
