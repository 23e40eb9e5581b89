"""From noise to video and 3D motion: the reader, the painter, what guides a step, the sampler; start in `pipeline`."""
