"""The AI SDK: the endpoints as Python sees them, its own client in node, and a page with it.

The page is tested in a browser by ``tests/browser/test_ai_sdk.py``.
"""
