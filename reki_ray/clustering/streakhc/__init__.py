"""StreaKHC: hierarchical clustering of a stream, with similarities of an isolation kernel.

Source: Han, Zhu, Ting, Zhang, Li, "Streaming Hierarchical Clustering Based on Point-Set Kernel",
KDD 2022. Written from the publication alone.
"""
