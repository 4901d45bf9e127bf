"""pocket-lm: a small language model that reads prompts for a small diffusion transformer, in Z-Image's form."""
