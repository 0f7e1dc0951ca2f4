"""What `import qlora_repeat` offers, and the progress bars that a person sees.

The commands call the same functions. Nothing is computed here: functions find what is named, call the layers
below, and return objects that show themselves in a notebook. Read `studies` first, then `results`.
"""
