"""Plain torch models: HEIN, feature fields, backbones, rerankers."""
