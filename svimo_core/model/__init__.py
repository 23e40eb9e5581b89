"""The networks: MM-DiT backbone, VID interaction model, video VAE and text encoder."""
