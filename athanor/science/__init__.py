"""Arithmetic about models before they exist: sizes, memory, time, and what a given time is best spent on."""
