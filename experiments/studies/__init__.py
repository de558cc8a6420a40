"""Many settings compared: grids, searches, the pages made of them."""
