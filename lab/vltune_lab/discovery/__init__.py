"""Where the conditions of a class list come from; runs once, offline, never at a site."""
