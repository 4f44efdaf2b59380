"""Advantages: what a group's rewards say of each member, one file each."""
