"""Where records come from: shards, a folder of pictures, torchvision's sets."""
