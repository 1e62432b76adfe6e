"""Values as files have them: tables, numbers and images."""
