"""Building blocks of architectures: parts of a layer, and what surrounds the layers."""
