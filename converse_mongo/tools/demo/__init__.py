"""The demonstration: workers write one after the other, others watch, and some of them die.

``app`` plays it; ``programs`` are the web process, the worker and the viewer, which run as
processes of their own; ``recording`` holds what they report, and compares it with what is stored;
``screen`` shows it.
"""
