"""Coordinate checks: does the size of activations, or of their change, depend on the width?"""
