"""Motion from elsewhere: files of other programs and trackers, and our own."""
