"""How fast is it, and is it still right? ``superb-lite bench`` measures costs, ``bench qbe`` races dtw-python."""
