"""Settings and files of settings, read strictly: all problems are reported at once, in words."""
