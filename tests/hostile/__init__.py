"""Attacks on the web edge: callers, bodies and clients, in tables. Extend the tables.

Sites are processes of their own, so that their memory and the work of their loop can be measured.
"""
