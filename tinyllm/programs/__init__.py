"""The programs that handle one run: their bodies, and the parts they share."""
