"""Plans: a source that is shared out in parts, each a list of files, among any number of machines."""
