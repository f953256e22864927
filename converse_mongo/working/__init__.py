"""Workers: they claim queued messages, have the application generate them, and see them through."""
