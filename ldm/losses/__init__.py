"""What an autoencoder is trained by, measured by, and told about itself."""
