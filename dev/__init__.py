"""Development tools of ComfyUI-SViMo: nothing in here is needed to use the pack."""
