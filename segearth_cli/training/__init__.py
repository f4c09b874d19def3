"""Training of encoders and upsamplers."""
