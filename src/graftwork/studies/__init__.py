"""Studies: methods compared over tasks and seeds, their tables and figures, and what is handed in of them."""
