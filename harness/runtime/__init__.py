"""Worker processes: what runs in one, and what starts and supervises them."""
