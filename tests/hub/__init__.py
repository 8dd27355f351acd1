"""The Hub as clients see it: a stand-in over loopback, and real clients that speak with it."""
