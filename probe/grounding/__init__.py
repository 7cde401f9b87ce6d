"""From a record to regions: the phrases of an answer, where each looks, and the mask that a refiner makes of it."""
