"""Figures made of records: every one readable in grey, by colour-blind people, and by a screen reader."""
