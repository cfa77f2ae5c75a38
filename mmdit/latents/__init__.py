"""The codec (video VAE) behind one interface; the latent store: write, verify, read."""
