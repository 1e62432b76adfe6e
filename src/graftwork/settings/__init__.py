"""Settings and files of settings, read strictly: every problem is told in words, all of them at once."""
