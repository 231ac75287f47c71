"""Rewrite a convolution as a chain of smaller ones, within a tolerance."""
