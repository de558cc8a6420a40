"""Who has which ticket, and what an arriving gradient does."""
