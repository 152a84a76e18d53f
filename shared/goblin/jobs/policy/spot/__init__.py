"""Where and when a job runs on rented GPUs: spot, on demand or wait; which offer, at which bid; how often it saves.

Pure: facts, time and measurements in, a decision with its reason out. Nothing here names a provider's zone, a date or a
machine: differences between pools are learned by observing them.
"""
