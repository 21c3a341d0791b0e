"""Drawn bins: what stands in them (`bins`, `products`, `layout`) and what they look like (`items`, `pod`, `photo`)."""
