"""What is in `inside/` is for the machine's own pytest; test_inside.py tells of it here."""

collect_ignore = ["inside"]
