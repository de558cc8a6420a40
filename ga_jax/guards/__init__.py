"""What keeps wrong use out: values, threads, processes. Knows no part of it."""
