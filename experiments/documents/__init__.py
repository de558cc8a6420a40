"""What the documentation is made with: pictures, screens, tables."""
