"""A loaded model: weights, KV cache and the programs that compute its steps."""
