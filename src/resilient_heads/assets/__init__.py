"""Data that ships in the wheel; see README.md beside this file for how it is made."""
