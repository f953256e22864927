"""The command line: the demonstration, the chat and the doctor."""
