"""The demonstration: one process writes, others watch, and one of them dies and resumes.

``app`` plays it; ``programs`` are the writer and the viewer, which run as processes of their own;
``recording`` holds what they report, and compares it with what is stored; ``screen`` shows it.
"""
