"""Studies: tables that take hours, kept with what made them. Each runs alone: `python -m studies.NAME --help`."""
