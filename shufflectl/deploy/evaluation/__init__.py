"""How often exported files are right on labelled images, and what explains it where they are not."""
