"""The primary tier: slots in host memory, which of them to evict, and copies from and to the GPU."""
