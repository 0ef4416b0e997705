"""The servers under measurement: started and stopped here, each with what it promises."""
