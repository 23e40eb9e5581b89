"""The laboratory: data, training and judging. ComfyUI never imports it."""
