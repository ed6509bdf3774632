"""What only measurements use: toys, the table over seeds, and the scripts behind the documentation's numbers."""
