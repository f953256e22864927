"""The demonstration: one process writes, others watch, and one of them dies and comes back.

``app`` wires it; ``writer`` and ``viewer`` are the programs that run as processes of their own, and
report to the parent in the lines of ``reports``; ``children`` starts and ends them; ``performance``
is the plot; ``verdict`` judges, without I/O, what ``recording`` holds; ``screens`` shows it all.
"""
