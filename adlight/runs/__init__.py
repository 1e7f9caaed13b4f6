"""Run folders: this package alone knows the names of the files in them."""
